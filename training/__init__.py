"""Offline learning and evaluation; imports unscene_ros and is never imported by it."""
