"""Clips packed into WebDataset tars that are read at random.

    index.json          format, kind of frames, the shards with their counts, sizes and sha256, what was left out
    shard-00000.tar     one WebDataset sample a clip: KEY.json, KEY.v00_f00.png ..., KEY.tensors.safetensors
    shard-00000.json    where each picture and each tensor of that tar lies

Any WebDataset reader takes the tars in sequence. Training reads them by byte ranges, in a folder as well as over S3 or
HTTP: a sample stays a function of (seed, step, number), whatever was read before, and by however many processes.
"""
