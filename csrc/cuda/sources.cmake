# What nvcc compiles, and the emulation's tests with the host's compiler: sources with kernels, for
# every architecture, and those that run on the host alone, once.
set(LLAMA2Q_CUDA_KERNELS
  attend_decode.cu
  attend_prefill.cu
  copy_blocks.cu
  dense.cu
  embed.cu
  gather.cu
  gemm.cu
  gemv.cu
  prepare.cu
  rope_append.cu
  select.cu
  upload.cu)
set(LLAMA2Q_CUDA_HOST
  device.cu
  device_memory.cu
  matmul.cu
  ops.cu
  pass.cu
  place.cu
  prefill_tiles.cu
  table.cu
  work.cpp)
set(LLAMA2Q_CUDA_SOURCES ${LLAMA2Q_CUDA_KERNELS} ${LLAMA2Q_CUDA_HOST})
