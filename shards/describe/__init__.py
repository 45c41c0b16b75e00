"""Descriptions of a sharded data set: statistics, data card, contact sheet."""
