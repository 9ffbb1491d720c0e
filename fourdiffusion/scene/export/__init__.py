"""Write a scene as files that other programs open: meshes, Gaussian splats, an HTML page, images, a dataset."""
