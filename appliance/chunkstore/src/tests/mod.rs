//! Tests of the whole store on the simulated disk: against a model, through power cuts, and with faults.

mod faults;
mod model;
mod space;
mod world;
