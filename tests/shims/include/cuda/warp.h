// Instructions that a warp carries out together, by their names in PTX with _ for dots.
#pragma once

#include "../group.h"

namespace shim {

struct Registers {
  uint32_t a[4], b[2];
};

inline std::vector<Registers> exchanged;  // of every work-item of the group

inline float Half(uint32_t pair, int place) {
  const uint16_t bits = pair >> 16 * place;
  half value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// d = a b + c of 16 x 16, 16 x 8 and 16 x 8 numbers; rounded once, while tensor cores round differently.
inline void mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32(float& d0, float& d1, float& d2, float& d3, uint32_t a0,
                                                              uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                                              uint32_t b1, float c0, float c1, float c2, float c3) {
  const size_t item = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z), lane = item % kWarp;
  exchanged.resize(std::max(exchanged.size(), (item / kWarp + 1) * kWarp));
  exchanged[item] = {{a0, a1, a2, a3}, {b0, b1}};
  WarpBarrier();
  float* const d[] = {&d0, &d1, &d2, &d3};
  const float c[] = {c0, c1, c2, c3};
  for (int i = 0; i < 4; ++i) {
    const size_t row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    double sum = c[i];
    for (int k = 0; k < 16; ++k) {
      const Registers* const warp = &exchanged[item - lane];
      const uint32_t a = warp[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2];
      const uint32_t b = warp[column * 4 + k % 8 / 2].b[k / 8];
      sum += static_cast<double>(Half(a, k % 2)) * Half(b, k % 2);
    }
    *d[i] = static_cast<float>(sum);
  }
  WarpBarrier();  // until all have read what was exchanged
}

}  // namespace shim
