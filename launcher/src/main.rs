//! `microvm`: starts and tends microVMs.

fn main() {}
