//! Puts the golden fixtures into the library, and lets every binary find libtorch without LD_LIBRARY_PATH (with the
//! `torch` feature).

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    embed_fixtures();
    // Cargo hands this on from torch-sys, which is a direct dependency for this reason alone.
    let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") else { return };
    println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
    // A binary that was carried to another checkout finds the libtorch of that one.
    println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN/../../../.libtorch/lib");
    // Beside PyTorch's wheel lies NVRTC, which compiles the kernels; it is looked for when the first one is wanted.
    println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}/../../nvidia/cu13/lib");
    println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN/../../../.libtorch/lib/../../nvidia/cu13/lib");
    // Nothing refers to libtorch_cuda by name; without this the linker drops it and CUDA is silently absent.
    println!("cargo::rustc-link-arg=-Wl,--no-as-needed");
    println!("cargo::rustc-link-arg=-ltorch");
    #[cfg(feature = "torch")]
    compile_graphs(Path::new(&lib));
}

/// Compiles the C++ behind `src/llm/graph.rs`, against CUDA if libtorch has it and its headers are there.
#[cfg(feature = "torch")]
fn compile_graphs(lib: &Path) {
    const SOURCE: &str = "src/llm/graph.cpp";
    println!("cargo::rerun-if-changed={SOURCE}");
    let beside = |path: &str| lib.join(path);
    // Beside PyTorch's wheel lie most of CUDA's headers; the compiler's own few are in Triton's folder.
    let cuda = [beside("../../nvidia/cu13/include"), "/usr/local/cuda/include".into()];
    let compiler = [beside("../../triton/backends/nvidia/include"), "/usr/local/cuda/include".into()];
    let with =
        |folders: [PathBuf; 2], header: &str| folders.into_iter().find(|folder| folder.join(header).exists());
    let headers = with(cuda, "cuda_runtime_api.h").zip(with(compiler, "crt/host_config.h"));
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").warnings(false).file(SOURCE);
    match headers.filter(|_| beside("libtorch_cuda.so").exists()) {
        Some((cuda, compiler)) => {
            build.define("WITH_CUDA", "1").include(beside("../include")).include(cuda);
            build.flag("-idirafter").flag(compiler).compile("grpo_graph");
            println!("cargo::rustc-link-search=native={}", lib.display());
            for library in ["torch_cuda", "c10_cuda"] {
                println!("cargo::rustc-link-lib={library}");
            }
        }
        None => build.define("WITH_CUDA", "0").compile("grpo_graph"),
    }
}

/// Writes `fixtures.rs`: a list of the files' paths under `fixtures/v1` and their texts.
fn embed_fixtures() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/v1");
    println!("cargo::rerun-if-changed={}", root.display());
    let mut files = Vec::new();
    for family in listed(&root) {
        files.extend(
            listed(&family).into_iter().filter(|file| file.extension().is_some_and(|end| end == "json")),
        );
    }
    let entry = |file: &PathBuf| {
        let name = file.strip_prefix(&root).expect("a file below");
        format!("    ({:?}, include_str!({:?})),\n", name.display().to_string(), file.display().to_string())
    };
    let list = format!("&[\n{}]\n", files.iter().map(entry).collect::<String>());
    let out = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    std::fs::write(Path::new(&out).join("fixtures.rs"), list).expect("OUT_DIR can be written to");
}

fn listed(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}
