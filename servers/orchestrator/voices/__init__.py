"""Voices: importing (`receiving`, `verification`, `importing`), rows (`store`), and which are loaded (`pool`).

`reconcile` finishes what was begun and keeps the model's pool as the database wants it.
"""
