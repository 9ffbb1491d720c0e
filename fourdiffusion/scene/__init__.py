"""The 4D scene: a dynamic radiance field, its renderer and its losses."""
