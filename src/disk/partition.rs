//! Partition tables (GPT, MBR).
