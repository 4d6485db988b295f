/* A CUDA runtime that reports one GPU and does nothing: see pretend_gpu.py.
   Every other function that torch imports is generated and returns 0, success. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

static char pinned[1 << 28];  /* pages are taken as they are used */
static size_t used;

int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
int cudaMalloc(void **place, size_t size) { *place = malloc(size); return *place ? 0 : 2; }
int cudaFree(void *place) { free(place); return 0; }
int cudaMemcpy(void *to, const void *from, size_t size, int kind) {
    memcpy(to, from, size);
    return 0;
}
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    return cudaMemcpy(to, from, size, kind);
}
int cudaMemGetInfo(size_t *left, size_t *total) { *left = *total = (size_t)80 << 30; return 0; }
int cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
int cudaStreamGetPriority(void *stream, int *priority) { *priority = 0; return 0; }
int cudaDeviceGetStreamPriorityRange(int *least, int *most) { *least = 0; *most = -5; return 0; }
int cudaDeviceCanAccessPeer(int *can, int device, int peer) { *can = 0; return 0; }
const char *cudaGetErrorString(int error) { return "no error: this GPU is pretended"; }
const char *cudaGetErrorName(int error) { return "pretended"; }
char __cudaInitModule(void **handle) { return 1; }
void **__cudaRegisterFatBinary(void *binary) { static void *handle[4]; return handle; }

/* Pinned memory is a range of its own, so that it can be told from other memory. */
int cudaHostAlloc(void **place, size_t size, unsigned flags) {
    if (used + size > sizeof pinned) return 2;
    *place = pinned + used;
    used += (size + 511) / 512 * 512;
    return 0;
}
int cudaPointerGetAttributes(void *attributes, const void *place) {
    const char *byte = place;
    *(int *)attributes = byte >= pinned && byte < pinned + sizeof pinned;  /* its first field: 1 host */
    return 0;
}
