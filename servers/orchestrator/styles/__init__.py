"""Styles: sounds that were cut into grain libraries."""
