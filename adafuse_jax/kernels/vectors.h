// Vectors of floats. Included once for each kind of CPU, inside a namespace; see tile.h for what is to be defined.

typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Mask __attribute__((vector_size(LANES * sizeof(float))));

template <class V = Vector>
TARGET static inline V get(const float* from) {
  V x;
  __builtin_memcpy(&x, from, sizeof(V));
  return x;
}

template <class V>
TARGET static inline void put(float* to, V x) {
  __builtin_memcpy(to, &x, sizeof(V));
}

// After a ReLU, by a mask that lets NaN through.
TARGET static inline Vector positive(Vector x) { return (Vector)((Mask)x & ~(Mask)(x < Vector{})); }
