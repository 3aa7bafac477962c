// Winograd's transforms in one direction: of tiles that read 4 pixels, F(2, 3), and 6, F(4, 3) or F(3, 4). Included
// like vectors.h, after it.

// B^T d.
TARGET static inline void to_frequencies(const Vector (&d)[4], Vector (&t)[4]) {
  t[0] = d[0] - d[2], t[1] = d[1] + d[2], t[2] = d[2] - d[1], t[3] = d[1] - d[3];
}
TARGET static inline void to_frequencies(const Vector (&d)[6], Vector (&t)[6]) {
  const Vector even = d[4] - 4.0f * d[2], odd = d[3] - 4.0f * d[1];
  const Vector near = d[4] - d[2], far = 2.0f * (d[3] - d[1]);
  t[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
  t[1] = even + odd, t[2] = even - odd, t[3] = near + far, t[4] = near - far;
  t[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
}

// A^T m.
TARGET static inline void to_pixels(const Vector (&m)[4], Vector (&y)[2]) {
  y[0] = m[0] + m[1] + m[2], y[1] = m[1] - m[2] - m[3];
}
TARGET static inline void to_pixels(const Vector (&m)[6], Vector (&y)[3]) {
  const Vector sum = m[1] + m[2], sum2 = m[3] + m[4];
  y[0] = m[0] + sum + sum2;
  y[1] = m[1] - m[2] + 2.0f * (m[3] - m[4]);
  y[2] = sum + 4.0f * sum2 + m[5];
}
TARGET static inline void to_pixels(const Vector (&m)[6], Vector (&y)[4]) {
  const Vector sum = m[1] + m[2], difference = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4];
  y[0] = m[0] + sum + sum2;
  y[1] = difference + 2.0f * difference2;
  y[2] = sum + 4.0f * sum2;
  y[3] = difference + 8.0f * difference2 + m[5];
}
