"""What can be set: plain dataclasses, each option stated once, its help below it. Nothing heavy is imported here."""
