/* A part of a JPEG, decoded by libjpeg-turbo. See jpeg_part.py, which compiles and loads this file.
 *
 * The pixels are those that a decoder of the entire image returns, bit for bit. The upsampling of colors looks at the
 * next pixels, so a few more on each side are decoded and dropped.
 *
 * A file that another decoder might treat differently is left to that decoder: after any error; if the file ends early;
 * if its only scan is not followed by EOI, because the rows below the part are never read; and if a progressive file
 * lacks coefficients, because versions of the library smooth its blocks differently.
 */

#include <setjmp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2000000
#error "libjpeg-turbo 2.0 or newer is required"
#endif

#define SWINV2_OTHER 0 /* for another decoder */

struct failure {
  struct jpeg_error_mgr base;
  jmp_buf place;
};

static void fail(j_common_ptr info) {
  longjmp(((struct failure *)info->err)->place, 1);
}

static void ignore_level(j_common_ptr info, int level) {
  (void)info, (void)level;
}

static void ignore(j_common_ptr info) {
  (void)info;
}

static boolean fail_at_the_end(j_decompress_ptr info) {
  fail((j_common_ptr)info);
  return FALSE;
}

/* Return whether the only scan, which begins at `byte`, is followed by EOI at once. */
static int ends_after_its_scan(const unsigned char *byte, const unsigned char *end) {
  while ((byte = memchr(byte, 0xFF, (size_t)(end - byte))) != NULL && byte + 1 < end) {
    unsigned char marker = byte[1];
    if (marker == 0xD9)
      return 1;
    if (marker != 0x00 && marker != 0xFF && !(marker >= 0xD0 && marker <= 0xD7))
      return 0;
    byte += marker == 0xFF ? 1 : 2;
  }
  return 0;
}

static int has_every_coefficient(const struct jpeg_decompress_struct *info) {
  if (!info->progressive_mode)
    return 1;
  if (info->coef_bits == NULL)
    return 0;
  for (int component = 0; component < info->num_components; component++)
    for (int place = 0; place < DCTSIZE2; place++)
      if (info->coef_bits[component][place] != 0)
        return 0;
  return 1;
}

static JDIMENSION lower(JDIMENSION value, JDIMENSION by) {
  return value > by ? value - by : 0;
}

static JDIMENSION smaller(JDIMENSION one, JDIMENSION other) {
  return one < other ? one : other;
}

/* Decode rows [top, top + height) and columns [left, left + width) of the image at 1 / `denominator` of its size.
 *
 * `out` has room for height * width * 3 bytes: (height, width, channels), without gaps. Returns the number of channels,
 * 1 or 3, or SWINV2_OTHER.
 */
int swinv2_jpeg_part(const unsigned char *data, size_t size, int denominator, int top, int left, int height, int width,
                     unsigned char *out) {
  struct jpeg_decompress_struct info;
  struct failure failure;
  memset(&info, 0, sizeof(info));
  info.err = jpeg_std_error(&failure.base);
  failure.base.error_exit = fail;
  failure.base.emit_message = ignore_level;
  failure.base.output_message = ignore;
  if (setjmp(failure.place)) {
    jpeg_destroy_decompress(&info);
    return SWINV2_OTHER;
  }
  jpeg_create_decompress(&info);
  jpeg_mem_src(&info, data, (unsigned long)size);
  info.src->fill_input_buffer = fail_at_the_end;
  jpeg_read_header(&info, TRUE);
  if (info.data_precision != 8 || (info.num_components != 1 && info.num_components != 3))
    fail((j_common_ptr)&info);
  if (!jpeg_has_multiple_scans(&info) && !ends_after_its_scan(info.src->next_input_byte, data + size))
    fail((j_common_ptr)&info);
  info.scale_num = 1;
  info.scale_denom = (unsigned)denominator;
  jpeg_start_decompress(&info);
  int channels = info.output_components;
  if (!has_every_coefficient(&info))
    fail((j_common_ptr)&info);
  if (channels != info.num_components || top < 0 || left < 0 || height < 1 || width < 1 ||
      (JDIMENSION)height > info.output_height || (JDIMENSION)top > info.output_height - (JDIMENSION)height ||
      (JDIMENSION)width > info.output_width || (JDIMENSION)left > info.output_width - (JDIMENSION)width)
    fail((j_common_ptr)&info);

  /* Twice the distance of two samples of a color. */
  JDIMENSION margin_y = (JDIMENSION)(2 * info.max_v_samp_factor);
  JDIMENSION margin_x = (JDIMENSION)(2 * info.max_h_samp_factor);
  JDIMENSION first_column = lower((JDIMENSION)left, margin_x);
  JDIMENSION columns = smaller((JDIMENSION)(left + width) + margin_x, info.output_width) - first_column;
  if (first_column > 0 || columns < info.output_width)
    jpeg_crop_scanline(&info, &first_column, &columns);
  JSAMPARRAY row = (*info.mem->alloc_sarray)((j_common_ptr)&info, JPOOL_IMAGE, columns * (JDIMENSION)channels, 1);
  JDIMENSION above = lower((JDIMENSION)top, margin_y);
  if (above > 0)
    jpeg_skip_scanlines(&info, above);
  size_t offset = ((size_t)left - first_column) * (size_t)channels, length = (size_t)width * (size_t)channels;
  size_t decoded = (size_t)columns * (size_t)channels, end = (size_t)height * length;
  unsigned char kept[128];
  while (info.output_scanline < (JDIMENSION)(top + height)) {
    JDIMENSION number = info.output_scanline;
    size_t start = number < (JDIMENSION)top ? 0 : (number - (JDIMENSION)top) * length;
    /* Most rows go to their place at once. Their margins lie on the row before, which is restored, and on the next one,
     * which comes later. */
    int fits = offset <= sizeof(kept) && start >= offset && start - offset + decoded <= end;
    int direct = number >= (JDIMENSION)top && fits;
    JSAMPROW target = direct ? out + (start - offset) : row[0];
    if (direct)
      memcpy(kept, target, offset);
    if (jpeg_read_scanlines(&info, &target, 1) != 1)
      fail((j_common_ptr)&info);
    if (direct)
      memcpy(target, kept, offset);
    else if (number >= (JDIMENSION)top)
      memcpy(out + start, row[0] + offset, length);
  }
  jpeg_destroy_decompress(&info);
  return channels;
}
