"""What makes tracks of recordings, wherever they come from."""
