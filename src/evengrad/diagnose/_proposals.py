"""Cures that several rules propose, each list the smallest change first."""

from evengrad.nouns import Cure, Setting


def cure(treatment: str, **settings: Setting) -> Cure:
    """Name a treatment and its settings.

    Example:
        >>> cure("ScaleLearningRate", factor=0.1).label
        'ScaleLearningRate(factor=0.1)'
    """
    return Cure(treatment=treatment, settings=tuple(settings.items()))


SMALLER_STEPS = (cure("ScaleLearningRate", factor=0.1), cure("ScaleLearningRate", factor=0.01))
LARGER_STEPS = (cure("ScaleLearningRate", factor=10.0), cure("ScaleLearningRate", factor=100.0))
CLIPPING = (cure("ClipGradients", max_norm=1.0),)
ANOTHER_OPTIMIZER = (cure("SwapOptimizer", to="adamw"),)
FRESH_WEIGHTS = (cure("Reinitialize"), cure("Reinitialize", data_driven=True))
NORMS_AND_SHORTCUTS = (cure("AddNormalization"), cure("AddResidual", norm="auto"))
FREE_OUTPUT = (cure("RemoveOutputActivation"),)
EVERYTHING_TRAINED = (cure("TrainEverything"),)
FULL_PRECISION = (cure("KeepInFloat32", parts="unsafe"), cure("KeepInFloat32", parts="all"))
