"""Training in several processes: agreement on ranks, DistributedDataParallel, FSDP2, and what is not supported.

Imports `lora`; the allocator, the callback, scoring and guards import it.
"""
