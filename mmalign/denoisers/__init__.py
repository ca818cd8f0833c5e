"""Text-to-image denoisers: pictures as preferences, on stock pipelines of diffusers."""
