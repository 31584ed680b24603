//! The `sepal` program.

fn main() {}
