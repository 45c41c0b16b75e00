"""Pictures of what a network predicts and sees, and of the images in a training step."""
