"""Python API: five names for notebooks and scripts, re-exported by the package itself."""
