"""Backbones, the recognizer around them, and the zoo of named models."""
