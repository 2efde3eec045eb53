//! Rules about the tree itself, checked by machine.

mod agent_sockets;
mod arrows;
mod hygiene;
mod proto_table;
mod sources;
mod who_may_call;
