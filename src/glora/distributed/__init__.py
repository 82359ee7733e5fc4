"""Several processes: agreement on ranks, DistributedDataParallel, FSDP2, and what is not supported."""
