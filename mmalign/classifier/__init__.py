"""Classifiers with two heads (DHO): labelled images, teachers, the model, heads in closed form, mixing, export."""
