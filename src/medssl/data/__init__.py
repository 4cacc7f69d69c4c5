"""Raw data sets to index, splits and shards."""
