"""What every layer uses: configuration, errors, tree paths, meshes and sharding rules, safetensors I/O."""
