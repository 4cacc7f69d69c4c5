"""The report of a study: one HTML page, its figures and its tables.

Sections stand in the order in which a reader judges a study: what was asked, what came out, how sure that is, for
whom it holds, how training went, what the data were, what was left out, and what it was all made from.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from medssl import labels, layout
from medssl.analysis import figures, inventory, outcomes, page, tables
from medssl.analysis import results as read_results
from medssl.analysis.figures import Difference, Line, Panel
from medssl.analysis.results import DECIMALS, Evaluation, Labels, Results
from medssl.analysis.tables import Table, percent
from medssl.config import TaskConfig
