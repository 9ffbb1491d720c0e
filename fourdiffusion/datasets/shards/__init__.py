"""Clips packed into WebDataset tars with random access.

    index.json          format, kind of frames, the shards with their counts, sizes and sha256, skipped clips
    shard-00000.tar     one WebDataset sample per clip: KEY.json, KEY.v00_f00.png ..., KEY.tensors.safetensors
    shard-00000.json    positions of the pictures and tensors in that tar

WebDataset readers read the tars in sequence. Training reads byte ranges, from a folder, S3 or HTTP: a sample is a
function of (seed, step, index), independent of earlier reads and of the number of processes.
"""
