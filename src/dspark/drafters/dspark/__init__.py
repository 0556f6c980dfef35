"""DSpark: a backbone that drafts blocks in parallel, a sequential head, a confidence head."""

from dspark.drafters.dspark.config import DSparkConfig
from dspark.drafters.dspark.drafter import DSparkDrafter

__all__ = ["DSparkConfig", "DSparkDrafter"]
