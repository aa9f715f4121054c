"""The grains engine: cuts sounds into grain libraries, and plays stems with them."""
