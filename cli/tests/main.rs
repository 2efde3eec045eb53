//! Files that come with the program: the samples of the documentation, and the fuzzer's corpus for the parts of
//! server and agent that read files.

mod corpus;
mod samples;
