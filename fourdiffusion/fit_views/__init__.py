"""The verb ``fit views=``: fit a scene to simultaneous videos of one object, from known cameras, without a model."""
