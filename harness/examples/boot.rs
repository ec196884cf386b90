//! How long a guest takes to be ready: by boot, and from a saved state.
//! `cargo run -p tornblk --example boot -- [KERNEL]`

use std::time::{Duration, Instant};

use tornblk::vm::{Accel, BOOT_TIMEOUT, Qemu, Vm, VmConfig};
use tornblk_image::{Request, build};

fn main() -> anyhow::Result<()> {
    env_logger::init();
    let kernel = std::env::args().nth(1).unwrap_or(tornblk_image::DEFAULT_KERNEL.into());
    let start = Instant::now();
    let image = build(&Request::new(kernel.parse()?), &mut |doing| println!("  {doing}"))?;
    println!("image {:.2} s", start.elapsed().as_secs_f64());
    let qemu = Qemu::find()?;
    let accel = Accel::probe(&qemu, &image, tornblk_image::cache::default_dir().ok().as_deref());
    println!("{qemu} {accel}, {} ({})", image.release, image.lock.kernel.format);
    let dir = tempfile::tempdir()?;
    let mut config = VmConfig {
        image: &image,
        qemu,
        accel,
        memory_mib: 512,
        cpus: 2,
        dir: dir.path(),
        use_saved: false,
        append: None,
        gdb: None,
        stop: None,
    };
    for _ in 0..3 {
        let start = Instant::now();
        let mut vm = Vm::boot(&config, BOOT_TIMEOUT)?;
        println!("boot  {:.2} s", start.elapsed().as_secs_f64());
        let start = Instant::now();
        vm.ping(Duration::from_secs(10))?;
        println!("ping  {:.3} s", start.elapsed().as_secs_f64());
    }
    config.use_saved = true;
    let start = Instant::now();
    Vm::start(&config)?.kill();
    println!("saved (made where missing) {:.2} s", start.elapsed().as_secs_f64());
    for _ in 0..3 {
        let start = Instant::now();
        let vm = Vm::start(&config)?;
        println!("saved {:.2} s", start.elapsed().as_secs_f64());
        vm.quit();
    }
    Ok(())
}
