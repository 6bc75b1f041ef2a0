// Copyright (c) kvtrim authors
// SPDX-License-Identifier: MIT

//! kvtrim from Rust, without bindgen: the declarations of kvtrim_c.h that this program needs, a safe wrapper of a few lines, and
//! one eviction: Ada-KV plans, survivors move to the front, and what the library refuses arrives as an Err.
//!
//!     rustc examples/rust/evict.rs -L build/release -l kvtrim_c && LD_LIBRARY_PATH=build/release ./evict

use std::ffi::{c_char, c_void, CStr, CString};
use std::mem::size_of;
use std::ptr::{null, null_mut};

// ---- kvtrim_c.h, KVTRIM_C_API_VERSION 2 ----

#[repr(C)]
struct Status {
    code: i32,
    reserved: i32,
    needed: i64,
    text: *const c_char,
}

#[repr(C)]
struct View {
    size: usize,
    element: i32,
    layout: i32,
    data: *mut c_void,
    extents: [i64; 3],
    strides: [i64; 3],
    lengths: *const i64,
    indices: *const i32,
    index_count: i64,
    indptr: *const i32,
    last_page: *const i32,
    table_rows: i64,
    row: i64,
    page_tokens: i64,
    page_stride: i64,
    pages: i64,
    scales: *mut f32,
    zeros: *mut f32,
    scale_strides: [i64; 3],
    scale_page_stride: i64,
}

#[repr(C)]
struct Layer {
    size: usize,
    keys: *const View,
    values: *const View,
    queries: *const View,
    output_projection: *const View,
    replay: *const c_void,
    running: *const c_void,
    statistics: *const c_void,
    rope: *const c_void,
    scores: *const View,
    means: *const c_void,
    norms: *const c_void,
    projection: *const c_void,
}

#[repr(C)]
struct Request {
    size: usize,
    budget_tokens: i64,
    budget_scope: i32,
    scale: f32,
    soft_cap: f32,
    reserved: i32,
    sink_tokens: i64,
    pinned_tokens: i64,
    window_tokens: i64,
    rollback_tokens: i64,
    sliding_window: i64,
    sink_logits: *const f32,
    sink_logits_count: i64,
    layer_shares: *const f64,
    layer_shares_count: i64,
    profile: *const c_void,
}

#[link(name = "kvtrim_c")]
extern "C" {
    fn kvtrim_api_version() -> i32;
    fn kvtrim_view_init(view: *mut View, element: i32, data: *mut c_void, heads: i64, rows: i64, channels: i64);
    fn kvtrim_request_init(request: *mut Request);
    fn kvtrim_context_create(executor: *const c_void, context: *mut *mut c_void) -> Status;
    fn kvtrim_context_destroy(context: *mut c_void);
    fn kvtrim_policy_create(name: *const c_char, options: *const c_char, policy: *mut *mut c_void) -> Status;
    fn kvtrim_policy_destroy(policy: *mut c_void);
    fn kvtrim_plan_create(plan: *mut *mut c_void) -> Status;
    fn kvtrim_plan_destroy(plan: *mut c_void);
    fn kvtrim_plan_rows(plan: *const c_void) -> i64;
    fn kvtrim_plan_offsets(plan: *const c_void) -> *const i32;
    fn kvtrim_plan_kept(plan: *const c_void) -> *const i32;
    fn kvtrim_plan_layers(
        policy: *const c_void, layers: *const Layer, layer_count: i64, request: *const Request,
        plans: *const *mut c_void, plan_count: i64, context: *mut c_void,
    ) -> Status;
    fn kvtrim_compact_in_place(keys: *const View, values: *const View, plan: *const c_void) -> Status;
}

// ---- A safe wrapper ----

#[derive(Debug)]
#[allow(dead_code)] // read by Debug
struct Refused {
    code: i32,
    needed: i64,
    text: String,
}

fn check(s: Status) -> Result<(), Refused> {
    if s.code == 0 {
        return Ok(());
    }
    let text = unsafe { CStr::from_ptr(s.text) }.to_string_lossy().into_owned();
    Err(Refused { code: s.code, needed: s.needed, text })
}

/// An object of the library, destroyed when it goes.
struct Handle(*mut c_void, unsafe extern "C" fn(*mut c_void));
impl Drop for Handle {
    fn drop(&mut self) {
        unsafe { (self.1)(self.0) }
    }
}

fn policy(name: &str, options: &str) -> Result<Handle, Refused> {
    let (name, options) = (CString::new(name).unwrap(), CString::new(options).unwrap());
    let mut made = null_mut();
    check(unsafe { kvtrim_policy_create(name.as_ptr(), options.as_ptr(), &mut made) })?;
    Ok(Handle(made, kvtrim_policy_destroy))
}

/// Rows [heads, rows, channels] of floats; borrows them.
struct Rows<'a>(View, std::marker::PhantomData<&'a mut [f32]>);
fn rows(data: &mut [f32], heads: usize, rows: usize, channels: usize) -> Rows<'_> {
    assert!(data.len() >= heads * rows * channels);
    let mut view: View = unsafe { std::mem::zeroed() };
    let at = data.as_mut_ptr().cast();
    unsafe { kvtrim_view_init(&mut view, 0, at, heads as i64, rows as i64, channels as i64) };
    Rows(view, std::marker::PhantomData)
}

fn main() -> Result<(), Refused> {
    const KV_HEADS: usize = 2;
    const TOKENS: usize = 64;
    const DIM: usize = 16;
    const WINDOW: usize = 8;
    assert_eq!(unsafe { kvtrim_api_version() }, 2);
    let number = |i: usize| (((i + 1).wrapping_mul(2654435761) >> 12) % 64) as f32 / 32.0 - 1.0;
    let mut keys: Vec<f32> = (0..KV_HEADS * TOKENS * DIM).map(number).collect();
    let mut queries: Vec<f32> = (0..2 * KV_HEADS * WINDOW * DIM).map(|i| number(i + 99991)).collect();
    let before = keys.clone();

    let mut context = null_mut();
    check(unsafe { kvtrim_context_create(null(), &mut context) })?;
    let context = Handle(context, kvtrim_context_destroy);
    let mut plan = null_mut();
    check(unsafe { kvtrim_plan_create(&mut plan) })?;
    let plan = Handle(plan, kvtrim_plan_destroy);
    let ada = policy("ada_snapkv", "kernel_tokens=7 pooling=maximum")?;

    let k = rows(&mut keys, KV_HEADS, TOKENS, DIM);
    let q = rows(&mut queries, 2 * KV_HEADS, WINDOW, DIM);
    let layer = Layer { size: size_of::<Layer>(), keys: &k.0, queries: &q.0, ..unsafe { std::mem::zeroed() } };
    let mut request: Request = unsafe { std::mem::zeroed() };
    unsafe { kvtrim_request_init(&mut request) };
    assert_eq!(request.size, size_of::<Request>());
    request.budget_tokens = 24;
    request.sink_tokens = 2;
    request.window_tokens = WINDOW as i64;
    check(unsafe { kvtrim_plan_layers(ada.0, &layer, 1, &request, &plan.0, 1, context.0) })?;
    check(unsafe { kvtrim_compact_in_place(&k.0, null(), plan.0) })?;

    let heads = unsafe { kvtrim_plan_rows(plan.0) } as usize;
    let offsets = unsafe { std::slice::from_raw_parts(kvtrim_plan_offsets(plan.0), heads + 1) };
    let kept = unsafe { std::slice::from_raw_parts(kvtrim_plan_kept(plan.0), offsets[heads] as usize) };
    assert_eq!(kept.len(), 2 * 24);
    for h in 0..heads {
        for (i, &row) in kept[offsets[h] as usize..offsets[h + 1] as usize].iter().enumerate() {
            let (to, from) = ((h * TOKENS + i) * DIM, (h * TOKENS + row as usize) * DIM);
            assert_eq!(keys[to..to + DIM], before[from..from + DIM]);
        }
    }
    let refused = policy("ada_snapkv", "kernel_token=7").err().expect("a misspelt option is refused");
    println!("{} heads keep {} tokens; {:?}", heads, kept.len(), refused);
    Ok(())
}
