#ifndef NAME_H
#define NAME_H

#ifdef __cplusplus
extern "C" {
#endif

@SIZES@

extern const char *const name_class_names[NAME_CLASSES];
extern const float name_mean[NAME_CHANNELS], name_std[NAME_CHANNELS];

/* Pixels (NAME_HEIGHT, NAME_WIDTH, NAME_CHANNELS) of 0 to 255 -> image (NAME_CHANNELS, NAME_HEIGHT,
   NAME_WIDTH): value / 255, less the mean, over the standard deviation. */
void name_prepare(const unsigned char *rgb, float *image);

/* Image -> logits (NAME_CLASSES). arena: NAME_ARENA_BYTES of memory with the alignment of float,
   whatever is in it; each thread needs one of its own. Returns 0, or 1 if a pointer is NULL. */
int name_run(const float *image, float *logits, void *arena);

#ifdef __cplusplus
}
#endif

#endif
