"""Classifiers with two heads (DHO): labelled images, teachers, the model, its losses, closed-form mixing, export."""
