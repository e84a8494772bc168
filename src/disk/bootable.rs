//! Finds kernel, initial RAM disk and command line on a root volume.
