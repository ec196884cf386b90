//! The file that holds what a disk was asked to do, and the data it was given.
