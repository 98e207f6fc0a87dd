"""Controls for a spec: forms made from configs, the placement grid, descriptions and costs of adapters."""
