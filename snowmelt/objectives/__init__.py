"""The mathematics of training: what noise is added, what the network predicts, how errors are weighted.

path     x_t = alpha(t) x0 + sigma(t) eps                      paths.py
target   F* = a x0 + b eps, a row (a, b) per prediction type   pipelines/prediction.py
weight   on the squared error, a function of the SNR           weights.py
timesteps, and how they are distributed                        timesteps.py
Objective(path, prediction type, weight, timesteps): the loss, objective.py
and the scheduler that samples what was trained
names -> objectives, from the command line's options           recipes.py
"""

from snowmelt.objectives.objective import Losses, Objective, StepContext
from snowmelt.objectives.recipes import DEFAULT, RECIPES, describe, make_objective

__all__ = ["DEFAULT", "RECIPES", "Losses", "Objective", "StepContext", "describe", "make_objective"]
