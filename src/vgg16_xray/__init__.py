"""Transfer learning with VGG16 on chest radiographs, in six steps. Research use only, not a medical device."""

__version__ = "0.1.0"

#: Stands wherever a prediction is shown.
RESEARCH_USE_ONLY = "Research use only. Not a medical device; not for diagnosis or treatment."
