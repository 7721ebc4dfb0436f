//! `microvm-image`: builds and reads the store disk of a microVM.

fn main() {}
