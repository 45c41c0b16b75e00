"""Extraction of features on several processes of this machine."""
