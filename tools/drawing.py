"""matplotlib for pictures in files, drawn by Agg: a notebook hands its own way to draw down to what it starts, and
matplotlib fails where that is not installed."""

import os

os.environ["MPLBACKEND"] = "Agg"  # before the first import

from matplotlib import pyplot as pyplot
from matplotlib.axes import Axes as Axes
from matplotlib.figure import Figure as Figure
