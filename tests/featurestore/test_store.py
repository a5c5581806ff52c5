"""An open store: its rows, labels and keys, and what is said when it can't be opened."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest_types import MakeStore
