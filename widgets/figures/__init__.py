"""Figures and tables that panels show."""
