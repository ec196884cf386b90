//! The driver of the backend's own tests: rings laid out by hand, whatever a driver may get wrong
//! can be said there.

#[path = "../../backend/tests/common/driver.rs"]
pub(crate) mod driver;
#[path = "../../backend/tests/common/scsi.rs"]
pub(crate) mod scsi;
#[path = "../../backend/tests/common/touched.rs"]
pub(crate) mod touched;
