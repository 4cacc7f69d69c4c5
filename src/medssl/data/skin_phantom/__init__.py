"""A generated dermatology data set: cases of several photographs of one lesion."""
