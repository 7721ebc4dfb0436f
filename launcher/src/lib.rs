//! Starts one machine spec on five hypervisors: see ARCHITECTURE.md.
