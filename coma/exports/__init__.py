"""Export of a run's backbone as an ordinary timm model: a folder in the layout of the Hugging Face Hub."""
